-- The functions of ckvm.h that the Lua module does not call, and why: the only ones.
return {
  ckvm_ioctl_name = "ckvm-lua --trace-ioctl calls it; a script gets the name in its errors",
  ckvm_ref = "lifetimes in Lua are the collector's; a VM holds its system",
  ckvm_vm_kvm = "for C programs that get a VM from elsewhere; a script has its system",
  ckvm_memory_flags = "for C programs that get memory from ckvm_vm_find_memory",
  ckvm_range_space = "for C programs that get a range from ckvm_vm_find_range",
  ckvm_set_kick_signal = "one for the process, and the host program's choice",
}
