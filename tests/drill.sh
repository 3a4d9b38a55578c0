#!/usr/bin/env bash
# The verification drill of a tenant operator, command by command (seed 002): start the server,
# create, list and delete tenants, then check that two tenants do not see each other.
#
# Settings, all optional:
#   NIMBUS       the binary            (nimbus, from PATH)
#   NIMBUS_PORT  the port; 0 is any    (8080)
#   NIMBUS_DATA  the data directory    (./data)
#   NIMBUS_MORE  more flags            (none; such as --tenant-provider redb)
# Needs curl and jq. Ends with "drill: passed" and status 0, or with the first check that failed.
set -euo pipefail

nimbus=${NIMBUS:-nimbus}
port=${NIMBUS_PORT:-8080}
data=${NIMBUS_DATA:-./data}
unset NIMBUS_TOKEN
work=$(mktemp -d)
checks=0
# Where the guide looks for the file of tenant acme; external providers have none.
case ${NIMBUS_MORE:-} in
'') file=$data/acme.sqlite3 ;;
*redb*) file=$data/acme.redb ;;
*) file= ;;
esac

fail() {
    printf 'drill: FAILED: %s\n' "$*" >&2
    exit 1
}

# check WHAT EXPECTED FOUND
check() {
    [ "$2" = "$3" ] || fail "$1: expected $2, found $3"
    checks=$((checks + 1))
    printf 'ok  %-58s %s\n' "$1" "${2:0:60}"
}

# check_json WHAT EXPECTED FOUND: equal as JSON
check_json() {
    check "$1" "$(jq -S -c . <<<"$2")" "$(jq -S -c . <<<"$3")"
}

# call: curl with the arguments; the body goes to $body, the status to $status
call() {
    status=$(curl -s -o "$work/body" -w '%{http_code}' "$@") || fail "curl $*"
    body=$(cat "$work/body")
}

# --- 1. Start the server.
: >"$work/log"
# Flags are words without spaces.
# shellcheck disable=SC2086
"$nimbus" start --port "$port" --data-dir "$data" ${NIMBUS_MORE:-} 2>"$work/log" &
server=$!
stop() {
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap stop EXIT
ready=$(timeout 30 grep -m1 -o 'listening on http://[0-9.]*:[0-9]*' \
    <(tail -f -n +1 --pid="$server" "$work/log")) || fail "no ready line: $(cat "$work/log")"
base=http://localhost:${ready##*:}

call "$base/health"
check_json 'health needs no credential' '{"ok": true}' "$body"

# --- 2. Load the admin token, made on the first start.
NIMBUS_TOKEN=$(jq -r .token ~/.local/share/nimbus/auth/token)
[ "$NIMBUS_TOKEN" = "$("$nimbus" auth token)" ] || fail 'the command line prints another token'

# --- 3. The token opens tenant administration in both forms, and nothing opens it without.
call "$base/api/tenants" -H "Authorization: Bearer $NIMBUS_TOKEN"
check 'list with a bearer token' 200 "$status"
call "$base/api/tenants" -H "X-Nimbus-Admin-Token: $NIMBUS_TOKEN"
check 'list with the header form' 200 "$status"
check_json 'there is no tenant yet' '{"tenants": []}' "$body"
call "$base/api/tenants"
check 'list without a token' 401 "$status"
call "$base/api/tenants" -H "Authorization: Bearer wrong"
check 'list with a wrong token' 401 "$status"

# --- Create.
call -X POST "$base/api/tenants" \
    -H "Authorization: Bearer $NIMBUS_TOKEN" \
    -H "Content-Type: application/json" \
    -d '{"id": "acme"}'
check 'create acme' 201 "$status"
check_json 'create answers with the id' '{"id": "acme"}' "$body"
call -X POST "$base/api/tenants" \
    -H "Authorization: Bearer $NIMBUS_TOKEN" \
    -H "Content-Type: application/json" \
    -d '{"id": "acme"}'
check 'create acme again' 409 "$status"
for id in _nimbus _anything 'a b' 'a/b' '' "$(printf 'x%.0s' {1..129})"; do
    call -X POST "$base/api/tenants" \
        -H "Authorization: Bearer $NIMBUS_TOKEN" \
        -H "Content-Type: application/json" \
        -d "$(jq -n --arg id "$id" '{id: $id}')"
    check "create the invalid id '${id:0:20}'" 400 "$status"
done
call -X POST "$base/api/tenants" \
    -H "Authorization: Bearer $NIMBUS_TOKEN" \
    -H "Content-Type: application/json" \
    -d '{"id": "demo"}'
check 'create demo' 201 "$status"

# --- List: own tenants only, none of the system.
call "$base/api/tenants" -H "Authorization: Bearer $NIMBUS_TOKEN"
check_json 'list both' '{"tenants": ["acme", "demo"]}' "$body"
[ -z "$file" ] || [ -f "$file" ] || fail "no $file"

# --- Delete.
call -X DELETE "$base/api/tenants/acme" -H "Authorization: Bearer $NIMBUS_TOKEN"
check 'delete acme' 204 "$status"
check 'delete answers without a body' '' "$body"
[ -z "$file" ] || [ ! -e "$file" ] || fail "$file is still there"
call "$base/api/tenants" -H "Authorization: Bearer $NIMBUS_TOKEN"
check_json 'list what is left' '{"tenants": ["demo"]}' "$body"

# --- Verify isolation, step 1: two tenants, one document in the first.
call -X POST "$base/api/tenants" \
    -H "Authorization: Bearer $NIMBUS_TOKEN" \
    -H "Content-Type: application/json" -d '{"id": "tenant-a"}'
check 'create tenant-a' 201 "$status"
call -X POST "$base/api/tenants" \
    -H "Authorization: Bearer $NIMBUS_TOKEN" \
    -H "Content-Type: application/json" -d '{"id": "tenant-b"}'
check 'create tenant-b' 201 "$status"
call -X POST "$base/api/tenants/tenant-a/documents" \
    -H "Authorization: Bearer $NIMBUS_TOKEN" \
    -H "Content-Type: application/json" \
    -d '{"table": "secrets", "fields": {"value": "tenant-a only"}}'
check 'insert into tenant-a' 201 "$status"
document=$(jq -r .id <<<"$body")

# --- Step 2: the same table of the other tenant is empty.
call -X POST "$base/api/tenants/tenant-b/query" \
    -H "Authorization: Bearer $NIMBUS_TOKEN" \
    -H "Content-Type: application/json" \
    -d '{"table": "secrets", "filters": []}'
check 'query tenant-b' 200 "$status"
check_json 'tenant-b sees nothing' '{"data": []}' "$body"
call -X POST "$base/api/tenants/tenant-a/query" \
    -H "Authorization: Bearer $NIMBUS_TOKEN" \
    -H "Content-Type: application/json" \
    -d '{"table": "secrets", "filters": []}'
check_json 'tenant-a sees its document' \
    "[{\"_id\": \"$document\", \"value\": \"tenant-a only\"}]" \
    "$(jq '[.data[] | {_id, value}]' <<<"$body")"
call "$base/api/tenants/tenant-b/documents/secrets/$document" \
    -H "Authorization: Bearer $NIMBUS_TOKEN"
[ "$status" = 404 ] || [ "$status" = 400 ] || fail "tenant-b reads tenant-a's document: $status"

# --- Step 3: reserved tenants and callers without a token are refused.
check 'create _evil' 400 "$(curl -s -o /dev/null -w "%{http_code}\n" -X POST "$base/api/tenants" \
    -H "Authorization: Bearer $NIMBUS_TOKEN" \
    -H "Content-Type: application/json" -d '{"id": "_evil"}')"
check 'list without a token' 401 \
    "$(curl -s -o /dev/null -w "%{http_code}\n" "$base/api/tenants")"

# --- Step 4: storage-level health.
call "$base/debug/tenants/tenant-a/consistency" -H "Authorization: Bearer $NIMBUS_TOKEN"
check 'consistency of tenant-a' 200 "$status"
check_json 'documents, indexes and commit log agree' '{"ok": true, "mismatches": []}' \
    "$(jq '{ok, mismatches}' <<<"$body")"
call "$base/debug/tenants/tenant-a/engine/metrics" -H "Authorization: Bearer $NIMBUS_TOKEN"
check 'engine metrics of tenant-a' 200 "$status"
check_json 'the metrics name the tenant' '"tenant-a"' "$(jq .tenant_id <<<"$body")"
[ "$(jq '.diagnostics.mutation_journal.durable_head >= 1' <<<"$body")" = true ] ||
    fail "no durable commit in the metrics: $body"

# --- Rotation as in the guide: the running server keeps the old token until its restart.
"$nimbus" auth rotate-admin >/dev/null
call "$base/api/tenants" -H "Authorization: Bearer $NIMBUS_TOKEN"
check 'the old token works until the restart' 200 "$status"
call "$base/api/tenants" -H "Authorization: Bearer $("$nimbus" auth token)"
check 'the new token does not work before it' 401 "$status"

printf 'drill: passed (%d checks)\n' "$checks"
