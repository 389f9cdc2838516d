# CKVM_WARNINGS(VARIABLE, FLAGS...): the flags that this compiler knows.
AC_DEFUN([CKVM_WARNINGS], [
  m4_foreach_w([flag], [$2], [
    AS_VAR_PUSHDEF([cached], [ckvm_cv_cflag_]flag)
    # Compilers refuse an unknown -Wfoo only together with -Werror, and gcc
    # accepts any -Wno-foo as long as there is nothing else to warn of.
    AC_CACHE_CHECK([whether $CC accepts flag], [cached], [
      ckvm_save_CFLAGS=$CFLAGS
      CFLAGS="$CFLAGS -Werror m4_bpatsubst(flag, [^-Wno-], [-W])"
      AC_COMPILE_IFELSE([AC_LANG_SOURCE([extern int ckvm;])],
        [AS_VAR_SET([cached], [yes])], [AS_VAR_SET([cached], [no])])
      CFLAGS=$ckvm_save_CFLAGS
    ])
    AS_VAR_IF([cached], [yes], [$1="$$1 flag"])
    AS_VAR_POPDEF([cached])
  ])
  AC_SUBST([$1])
])

# CKVM_SANITIZERS(VARIABLE, FLAGS): the flags, or an error if they do not work.
AC_DEFUN([CKVM_SANITIZERS], [
  AC_CACHE_CHECK([whether $CC links with $2], [ckvm_cv_sanitizers], [
    ckvm_save_CFLAGS=$CFLAGS
    CFLAGS="$CFLAGS $2"
    AC_LINK_IFELSE([AC_LANG_PROGRAM([], [])],
      [ckvm_cv_sanitizers=yes], [ckvm_cv_sanitizers=no])
    CFLAGS=$ckvm_save_CFLAGS
  ])
  AS_IF([test $ckvm_cv_sanitizers = no],
    [AC_MSG_ERROR([--enable-sanitizers: $CC has no runtime for $enable_sanitizers (gcc brings libasan, libubsan and libtsan; clang needs Debian's libclang-rt-dev).])])
  AC_SUBST([$1], ["$2"])
])

# CKVM_FUZZER: FUZZ_CC, a clang that links with libFuzzer, or nothing. Whatever
# compiles the rest, as gcc has no such thing.
AC_DEFUN([CKVM_FUZZER], [
  AC_ARG_VAR([FUZZ_CC], [clang with libFuzzer, for make fuzz])
  AC_CACHE_CHECK([for clang with libFuzzer], [ac_cv_path_FUZZ_CC], [
    AC_PATH_PROGS_FEATURE_CHECK([FUZZ_CC], [clang clang-19 clang-16 clang-14],
      [[echo 'int LLVMFuzzerTestOneInput(const char *data, unsigned long size)
          { return 0; }' >conftest.c
        $ac_path_FUZZ_CC -fsanitize=fuzzer,address,undefined -o conftest \
          conftest.c >/dev/null 2>&1 &&
        ac_cv_path_FUZZ_CC=$ac_path_FUZZ_CC ac_path_FUZZ_CC_found=:
        rm -f conftest conftest.c]],
      [ac_cv_path_FUZZ_CC=no])])
  AS_VAR_IF([ac_cv_path_FUZZ_CC], [no], [FUZZ_CC=],
    [FUZZ_CC=$ac_cv_path_FUZZ_CC])
])

# CKVM_LUA(MINIMUM): LUA_CFLAGS, LUA_LIBS and LUA_PC, its name in pkg-config.
AC_DEFUN([CKVM_LUA], [
  PKG_PROG_PKG_CONFIG
  AS_IF([test -z "$PKG_CONFIG"],
    [AC_MSG_ERROR([pkg-config is missing (Debian: pkg-config, Fedora: pkgconf-pkg-config).])])
  AC_MSG_CHECKING([for Lua 5.4, $1 or newer])
  LUA_PC= ckvm_lua_seen=
  for ckvm_name in lua5.4 lua-5.4 lua54 lua; do
    PKG_CHECK_EXISTS([$ckvm_name >= $1 $ckvm_name < 5.5],
      [LUA_PC=$ckvm_name; break],
      [PKG_CHECK_EXISTS([$ckvm_name],
        [ckvm_lua_seen="$ckvm_lua_seen $ckvm_name `$PKG_CONFIG --modversion $ckvm_name`"])])
  done
  AS_IF([test -z "$LUA_PC"], [
    AC_MSG_RESULT([no])
    AC_MSG_ERROR([the Lua 5.4 library ($1 or newer) is missing (pkg-config found:${ckvm_lua_seen:- none}). Install Debian's liblua5.4-dev or Fedora's lua-devel.])])
  AC_MSG_RESULT([$LUA_PC `$PKG_CONFIG --modversion $LUA_PC`])
  PKG_CHECK_MODULES([LUA], [$LUA_PC >= $1 $LUA_PC < 5.5])
  AC_SUBST([LUA_PC])

  AC_ARG_VAR([LUA], [stock Lua 5.4 interpreter, for make installcheck])
  AC_CACHE_CHECK([for a Lua 5.4 interpreter], [ac_cv_path_LUA], [
    AC_PATH_PROGS_FEATURE_CHECK([LUA], [lua5.4 lua-5.4 lua54 lua],
      [[test "`$ac_path_LUA -e 'print(_VERSION)' 2>/dev/null`" = 'Lua 5.4' &&
        ac_cv_path_LUA=$ac_path_LUA ac_path_LUA_found=:]],
      [ac_cv_path_LUA=no])])
  LUA=$ac_cv_path_LUA
])
