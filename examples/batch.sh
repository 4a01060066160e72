#!/usr/bin/env bash
# Submit a file of requests, wait for the batch, and write what was answered; needs curl alone.
#
#     examples/batch.sh requests.jsonl answers.jsonl
#
# Reads OPENAI_BASE_URL and OPENAI_API_KEY. Exits with 0 if every request was answered.
set -euo pipefail

readonly SOURCE=$1 TARGET=$2

# A refusal ends the script, and what the server said is shown.
call() {
    local path=$1
    shift
    curl --silent --show-error --fail-with-body --header "Authorization: Bearer $OPENAI_API_KEY" \
        "$OPENAI_BASE_URL$path" "$@" || { echo >&2; return 1; }
}

# The value of a text field of a JSON object on standard input; empty when it is null.
field() {
    sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p"
}

file=$(call /files --form purpose=batch --form "file=@$SOURCE" | field id)
# The endpoint is the one that the first line names.
endpoint=$(head -n 1 "$SOURCE" | grep -o '"url": *"/v1/[a-z/]*"' | head -n 1 | cut -d '"' -f 4)
wanted=$(printf '{"input_file_id": "%s", "endpoint": "%s", "completion_window": "24h"}' "$file" "$endpoint")
batch=$(call /batches --header "Content-Type: application/json" --data "$wanted" | grep -o 'batch_[0-9a-f]*' | head -n 1)

while true; do
    answer=$(call "/batches/$batch")
    status=$(field status <<<"$answer")
    echo "$status" >&2
    case $status in completed | failed | expired | cancelled) break ;; esac
    sleep 2
done

output=$(field output_file_id <<<"$answer")
errors=$(field error_file_id <<<"$answer")
if [ -n "$output" ]; then call "/files/$output/content" --output "$TARGET"; fi
if [ -n "$errors" ]; then call "/files/$errors/content" >&2; fi
if [ "$status" = failed ]; then echo "$answer" >&2; fi
[ "$status" = completed ] && [ -z "$errors" ]
