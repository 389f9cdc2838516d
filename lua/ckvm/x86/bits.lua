-- Names of bits, MSRs and exceptions, as the manuals of the CPU have them, for ckvm.x86.

local bits = {}

-- What reads as a keyword of Lua stands in brackets: x86.rflags["if"].

--- Bits of RFLAGS; `iopl` is both of its bits.
-- @field ckvm.x86.rflags
bits.rflags = {
  cf = 1 << 0, pf = 1 << 2, af = 1 << 4, zf = 1 << 6, sf = 1 << 7, tf = 1 << 8, ["if"] = 1 << 9,
  df = 1 << 10, of = 1 << 11, iopl = 3 << 12, nt = 1 << 14, rf = 1 << 16, vm = 1 << 17,
  ac = 1 << 18, vif = 1 << 19, vip = 1 << 20, id = 1 << 21,
}

--- Bits of CR0.
-- @field ckvm.x86.cr0
bits.cr0 = {
  pe = 1 << 0, mp = 1 << 1, em = 1 << 2, ts = 1 << 3, et = 1 << 4, ne = 1 << 5, wp = 1 << 16,
  am = 1 << 18, nw = 1 << 29, cd = 1 << 30, pg = 1 << 31,
}

--- Bits of CR3: how the tables are cached, the bits of a PCID, and that its translations are kept.
-- @field ckvm.x86.cr3
bits.cr3 = {
  pwt = 1 << 3, pcd = 1 << 4, pcid = 0xfff, lam_u57 = 1 << 61, lam_u48 = 1 << 62,
  no_flush = 1 << 63,
}

--- Bits of CR4.
-- @field ckvm.x86.cr4
bits.cr4 = {
  vme = 1 << 0, pvi = 1 << 1, tsd = 1 << 2, de = 1 << 3, pse = 1 << 4, pae = 1 << 5, mce = 1 << 6,
  pge = 1 << 7, pce = 1 << 8, osfxsr = 1 << 9, osxmmexcpt = 1 << 10, umip = 1 << 11, la57 = 1 << 12,
  vmxe = 1 << 13, smxe = 1 << 14, fsgsbase = 1 << 16, pcide = 1 << 17, osxsave = 1 << 18,
  kl = 1 << 19, smep = 1 << 20, smap = 1 << 21, pke = 1 << 22, cet = 1 << 23, pks = 1 << 24,
  uintr = 1 << 25, lass = 1 << 27, lam_sup = 1 << 28, fred = 1 << 32,
}

--- Bits of the MSR EFER.
-- @field ckvm.x86.efer
bits.efer = {
  sce = 1 << 0, lme = 1 << 8, lma = 1 << 10, nxe = 1 << 11, svme = 1 << 12, lmsle = 1 << 13,
  ffxsr = 1 << 14, tce = 1 << 15, autoibrs = 1 << 21,
}

--- Bits of XCR0: the parts of the state that XSAVE knows.
-- @field ckvm.x86.xcr0
bits.xcr0 = {
  x87 = 1 << 0, sse = 1 << 1, avx = 1 << 2, bndregs = 1 << 3, bndcsr = 1 << 4, opmask = 1 << 5,
  zmm_hi256 = 1 << 6, hi16_zmm = 1 << 7, pkru = 1 << 9, tilecfg = 1 << 17, tiledata = 1 << 18,
}

--- Bits of DR6: which breakpoint it was, or what else.
-- @field ckvm.x86.dr6
bits.dr6 = {
  b0 = 1 << 0, b1 = 1 << 1, b2 = 1 << 2, b3 = 1 << 3, bld = 1 << 11, bd = 1 << 13, bs = 1 << 14,
  bt = 1 << 15, rtm = 1 << 16,
}

--- Bits of DR7. Of breakpoint n, `rw0 << 4 * n` are both bits of its kind (0 executed, 1 written,
-- 2 a port, 3 read or written), `len0 << 4 * n` those of its size (0 to 3: 1, 2, 8, 4 bytes).
-- @field ckvm.x86.dr7
bits.dr7 = {
  l0 = 1 << 0, g0 = 1 << 1, l1 = 1 << 2, g1 = 1 << 3, l2 = 1 << 4, g2 = 1 << 5, l3 = 1 << 6,
  g3 = 1 << 7, le = 1 << 8, ge = 1 << 9, rtm = 1 << 11, gd = 1 << 13, rw0 = 3 << 16, len0 = 3 << 18,
}

--- Bits of a page fault's error code.
-- @field ckvm.x86.page_fault
bits.page_fault = {
  present = 1 << 0, write = 1 << 1, user = 1 << 2, reserved = 1 << 3, fetch = 1 << 4,
  protection_key = 1 << 5, shadow_stack = 1 << 6, sgx = 1 << 15,
}

--- Vectors of the exceptions.
-- @field ckvm.x86.vector
bits.vector = {
  de = 0, db = 1, nmi = 2, bp = 3, of = 4, br = 5, ud = 6, nm = 7, df = 8, ts = 10, np = 11,
  ss = 12, gp = 13, pf = 14, mf = 16, ac = 17, mc = 18, xm = 19, ve = 20, cp = 21, hv = 28, vc = 29,
  sx = 30,
}

--- Numbers of MSRs, for `vcpu:get_msrs` and `vcpu:set_msrs`.
-- @field ckvm.x86.msr
bits.msr = {
  tsc = 0x10, apic_base = 0x1b, feature_control = 0x3a, tsc_adjust = 0x3b, spec_ctrl = 0x48,
  pred_cmd = 0x49, mtrr_cap = 0xfe, arch_capabilities = 0x10a, sysenter_cs = 0x174,
  sysenter_esp = 0x175, sysenter_eip = 0x176, mcg_cap = 0x179, mcg_status = 0x17a,
  mcg_ctl = 0x17b, misc_enable = 0x1a0, debugctl = 0x1d9, pat = 0x277, mtrr_def_type = 0x2ff,
  tsc_deadline = 0x6e0, x2apic_base = 0x800, xss = 0xda0,
  efer = 0xc0000080, star = 0xc0000081, lstar = 0xc0000082, cstar = 0xc0000083,
  fmask = 0xc0000084, fs_base = 0xc0000100, gs_base = 0xc0000101, kernel_gs_base = 0xc0000102,
  tsc_aux = 0xc0000103, syscfg = 0xc0010010, hwcr = 0xc0010015, vm_cr = 0xc0010114,
  vm_hsave_pa = 0xc0010117,
  kvm_wall_clock = 0x4b564d00, kvm_system_time = 0x4b564d01, kvm_async_pf = 0x4b564d02,
  kvm_steal_time = 0x4b564d03, kvm_pv_eoi = 0x4b564d04,
}

return bits
