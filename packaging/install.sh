#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Puts what was built, and what belongs to it, where PREFIX says; or removes exactly that.
#   B=build PREFIX=/usr/local DESTDIR= VERSION=0.1.0 SOMAJOR=0 packaging/install.sh install|uninstall
# LIBDIR (PREFIX/lib) is for distributions that keep libraries elsewhere; modules are the daemon's own and stay in PREFIX/lib/omnidaemon. What a person may have edited, /etc, is not touched.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:?usage: packaging/install.sh install|uninstall}
: "${B:=build}" "${PREFIX:=/usr/local}" "${DESTDIR:=}" "${VERSION:?}" "${SOMAJOR:?}"
: "${LIBDIR:=$PREFIX/lib}"
doc=$PREFIX/share/doc/omnidaemon
shopt -s nullglob

# One line for each file: put MODE SOURCE TARGET, or link NAME TARGET; `fill` is put with the paths written into the text.
plan() {
        local f name
        put 755 "$B/bin/omnidaemond" "$PREFIX/bin/omnidaemond"
        put 755 "$B/bin/omnictl" "$PREFIX/bin/omnictl"
        link omnictl "$PREFIX/bin/omnidaemon"
        put 755 "$B/lib/libomniclient.so.$SOMAJOR" "$LIBDIR/libomniclient.so.$VERSION"
        link "libomniclient.so.$VERSION" "$LIBDIR/libomniclient.so.$SOMAJOR"
        link "libomniclient.so.$SOMAJOR" "$LIBDIR/libomniclient.so"
        put 644 "$B/lib/libomniclient.a" "$LIBDIR/libomniclient.a"
        put 644 client/c/omniclient.h "$PREFIX/include/omniclient.h"
        fill packaging/pkgconfig/omniclient.pc.in "$LIBDIR/pkgconfig/omniclient.pc"
        for f in backends/*/; do
                name=$(basename "$f")
                for name in "bus_$name.so" "store_$name.so"; do
                        [[ $what == install && ! -e $B/lib/omnidaemon/$name ]] || put 644 "$B/lib/omnidaemon/$name" "$PREFIX/lib/omnidaemon/$name"
                done
        done
        for f in packaging/man/*.[1-8]; do
                put 644 "$f" "$PREFIX/share/man/man${f##*.}/${f##*/}"
        done
        for f in packaging/completions/*; do
                name=${f##*/}
                case $name in
                *.fish) put 644 "$f" "$PREFIX/share/fish/vendor_completions.d/$name" ;;
                *.zsh) put 644 "$f" "$PREFIX/share/zsh/site-functions/_${name%.zsh}" ;;
                _*) put 644 "$f" "$PREFIX/share/zsh/site-functions/$name" ;;
                *) put 644 "$f" "$PREFIX/share/bash-completion/completions/${name%.bash}" ;;
                esac
        done
        [[ ! -e packaging/completions/omnictl.bash && ! -e packaging/completions/omnictl ]] ||
                link omnictl "$PREFIX/share/bash-completion/completions/omnidaemon"
        for f in packaging/systemd/* packaging/systemd/user/*; do
                [[ -f $f ]] || continue
                name=${f##*/}
                name=${name%.in}
                case $f in
                */user/*) fill "$f" "$PREFIX/lib/systemd/user/$name" ;;
                *sysusers*) fill "$f" "$PREFIX/lib/sysusers.d/omnidaemon.conf" ;;
                *tmpfiles*) fill "$f" "$PREFIX/lib/tmpfiles.d/omnidaemon.conf" ;;
                *.service* | *.socket* | *.target* | *.timer* | *.path*) fill "$f" "$PREFIX/lib/systemd/system/$name" ;;
                esac
        done
        for f in conf/*; do
                put 644 "$f" "$doc/conf/${f##*/}"
        done
        for f in proto/PROTOCOL.md README.md LICENSE; do
                [[ ! -e $f ]] || put 644 "$f" "$doc/${f##*/}"
        done
        for f in client/c/examples/*; do
                put 644 "$f" "$doc/examples/${f##*/}"
        done
}

case $what in
install)
        put() { install -D -m "$1" "$2" "$DESTDIR$3"; }
        link() {
                install -d "$(dirname "$DESTDIR$2")"
                ln -sfn "$1" "$DESTDIR$2"
        }
        fill() {
                install -d "$(dirname "$DESTDIR$2")"
                sed -e "s|@PREFIX@|$PREFIX|g; s|@LIBDIR@|$LIBDIR|g; s|@VERSION@|$VERSION|g; s|@bindir@|$PREFIX/bin|g" \
                        -e "s|/usr/bin/omni|$PREFIX/bin/omni|g" "$1" >"$DESTDIR$2"
                chmod 644 "$DESTDIR$2"
        }
        plan
        # A library in a folder that the linker knows is found only after this.
        [[ -n $DESTDIR || $EUID -ne 0 ]] || ldconfig
        ;;
uninstall)
        put() { rm -f "$DESTDIR$3"; }
        link() { [[ ! -L $DESTDIR$2 || $(readlink "$DESTDIR$2") != "$1" ]] || rm -f "$DESTDIR$2"; }
        fill() { rm -f "$DESTDIR$2"; }
        plan
        for folder in "$doc/conf" "$doc/examples" "$doc" "$PREFIX/lib/omnidaemon"; do
                [[ ! -d $DESTDIR$folder ]] || rmdir --ignore-fail-on-non-empty "$DESTDIR$folder"
        done
        [[ -n $DESTDIR || $EUID -ne 0 ]] || ldconfig
        ;;
*)
        echo "packaging/install.sh: install or uninstall, not \"$what\"" >&2
        exit 2
        ;;
esac
