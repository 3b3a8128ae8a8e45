#!/bin/sh
# curl: prints a stream as it comes, and goes on right behind the last whole event, also after a restart.
#
#     RELAY_TOKEN=… sh curl.sh https://relay.example.com/stream/rounds/ROULETTE/123/v1/live last-id.txt
#
# The token goes by a file, since the arguments of a command are seen by everybody on the machine.
set -eu
url=$1 kept=$2
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
trap 'exit 1' INT TERM
(umask 077 && printf 'header = "Authorization: Bearer %s"\n' "$RELAY_TOKEN" >"$state/token")
touch "$kept"

while :; do
    last=$(cat "$kept")
    {
        # 22: a status of 400 or more. 4xx is final; 5xx comes from a proxy, while the relay is away.
        curl -sSN --compressed --fail --keepalive-time 20 -D "$state/head" -K "$state/token" ${last:+-H "Last-Event-ID: $last"} "$url" ||
            [ $? -ne 22 ] || ! grep -q '^HTTP/[^ ]* 4' "$state/head" || touch "$state/refused"
    } | while IFS= read -r line; do
        printf '%s\n' "$line"
        case $line in
        id:*) id=${line#id: } ;;
        # An event is whole at its empty line. With its id kept sooner, one that is cut in the middle would be lost.
        '') [ -z "${id-}" ] || { printf '%s' "$id" >"$kept.new" && mv "$kept.new" "$kept"; } ;;
        esac
    done
    [ ! -e "$state/refused" ] || exit 1
    sleep 2
done
