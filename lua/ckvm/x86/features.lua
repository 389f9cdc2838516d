-- Where CPUID tells of features, by the names of Linux's /proc/cpuinfo where it has one and of the
-- manuals of Intel and AMD where not, for ckvm.x86.
--
-- A row is a leaf, a subleaf (nil where there are none), a register, and the names of its bits from
-- 0 on: "-" is a bit without a name, "@16" goes on with bit 16.

return {
  rows = {
    { 0x1, nil, "ecx", "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16"
      .. " xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave"
      .. " osxsave avx f16c rdrand hypervisor" },
    { 0x1, nil, "edx", "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36"
      .. " pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe" },
    { 0x6, nil, "eax", "dtherm ida arat - pln - pts hwp hwp_notify hwp_act_window hwp_epp"
      .. " hwp_pkg_req" },
    { 0x6, nil, "ecx", "aperfmperf - - epb" },
    { 0x7, 0, "ebx", "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid"
      .. " rtm cqm zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt"
      .. " clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl" },
    { 0x7, 0, "ecx", "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes"
      .. " vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 @22 rdpid kl"
      .. " bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks" },
    { 0x7, 0, "edx", "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect"
      .. " srbds_ctrl md_clear rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk -"
      .. " pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp"
      .. " flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd" },
    { 0x7, 1, "eax", "sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm"
      .. " fsrs fsrc @17 fred lkgs wrmsrns - amx_fp16 hreset avx_ifma @26 lam" },
    { 0x7, 1, "edx", "@4 avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16"
      .. " @14 prefetchiti @18 cet_sss avx10" },
    { 0x7, 2, "edx", "psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no" },
    { 0xd, 1, "eax", "xsaveopt xsavec xgetbv1 xsaves xfd" },
    { 0x40000001, nil, "eax", "kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvm_clocksource2"
      .. " kvm_async_pf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush"
      .. " kvm_async_pf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield"
      .. " kvm_async_pf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control"
      .. " @24 kvm_clocksource_stable_bit" },
    { 0x80000001, nil, "ecx", "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse"
      .. " 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext"
      .. " perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx" },
    { 0x80000001, nil, "edx", "@11 syscall @19 mp nx - mmxext @25 fxsr_opt pdpe1gb rdtscp - lm"
      .. " 3dnowext 3dnow" },
    { 0x80000007, nil, "ebx", "overflow_recov succor - smca" },
    { 0x80000007, nil, "edx", "@7 hw_pstate nonstop_tsc cpb eff_freq_ro proc_feedback acc_power" },
    { 0x80000008, nil, "ebx", "clzero irperf xsaveerptr invlpgb rdpru - mba - mcommit wbnoinvd - -"
      .. " amd_ibpb int_wbinvd amd_ibrs amd_stibp @17 amd_stibp_always_on @23 amd_ppin amd_ssbd"
      .. " virt_ssbd amd_ssb_no cppc amd_psfd btc_no ibpb_ret brs" },
    { 0x8000000a, nil, "edx", "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid"
      .. " decodeassists - - pausefilter - pfthreshold avic - v_vmsave_vmload vgif - x2avic -"
      .. " v_spec_ctrl @25 vnmi" },
    { 0x8000001f, nil, "eax", "sme sev vm_page_flush sev_es sev_snp @14 debug_swap" },
    { 0x80000021, nil, "eax", "no_nested_data_bp wrmsr_xx_base_ns lfence_rdtsc - - -"
      .. " null_sel_clr_base - autoibrs no_smm_ctl_msr @27 sbpb ibpb_brtype srso_no" },
  },
  -- Other names that are in use.
  aliases = {
    sse3 = "pni", cmpxchg16b = "cx16", cmpxchg8b = "cx8", tsc_deadline = "tsc_deadline_timer",
    sha = "sha_ni", lzcnt = "abm", invariant_tsc = "nonstop_tsc", constant_tsc = "nonstop_tsc",
    long_mode = "lm", user_shstk = "shstk", clfsh = "clflush", htt = "ht",
    pclmul = "pclmulqdq", avx512_ifma = "avx512ifma", avx512_vbmi = "avx512vbmi",
  },
}
