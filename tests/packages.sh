# shellcheck shell=bash
# What tests/lane and tests/images share: files that are made once, of Debian's packages, and kept.
# Whoever sources it has its own name in $me.

cache=${CKVM_LANES:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/ckvm}

# shellcheck disable=SC2154 # me: see above
die() { printf '%s: %s\n' "$me" "$*" >&2; exit 125; }

wants() # command, Debian's package
{
	command -v "$1" >/dev/null || die "$1 is missing (Debian: $2)"
}

# Unpacks, in this directory, the newest package whose whole name matches.
download()
{
	local name
	name=$(apt-cache search --names-only "^$1\$" | cut -d' ' -f1 | sort -V | tail -n 1)
	[ -n "$name" ] || die "apt-get knows no package $1 (try apt-get update)"
	printf '%s: downloading %s\n' "$me" "$name" >&2
	apt-get download -q "$name" >apt.log 2>&1 ||
		die "cannot download $name: $(grep -m 1 '^E:' apt.log)"
	dpkg-deb -x "${name}"_*.deb . || die "cannot unpack $name"
}

# Has the files in $cache/name, which the function makes in an empty directory. Two that do this at
# once do not disturb each other: the first to end has it.
keep() # name, function, files
{
	local scratch name=$1 make=$2
	shift 2
	[ ! -e "$cache/$name" ] || return 0
	wants apt-get apt; wants dpkg-deb dpkg
	mkdir -p "$cache"
	scratch=$(mktemp -d "$cache/$name.XXXXXX") || die "cannot write to $cache"
	if (cd "$scratch" && "$make" && mkdir made && mv "$@" made); then
		mv -T "$scratch/made" "$cache/$name" 2>/dev/null
	fi
	rm -rf "$scratch"
	[ -e "$cache/$name" ] || exit 125
}
