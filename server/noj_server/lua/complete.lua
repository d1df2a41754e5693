-- A runner reports a result. It lands if the job is current and the report is made under its
-- present lease, also after the deadline as long as nobody reclaimed (INV1, INV3, INV4).
-- KEYS[1] prefix
-- ARGV runner, job, lease or '', status, score, time_ms, memory_kib, result blob, retention_s,
--      tombstone_s
-- replies landed, already_landed (a repeat), stale, not_yours, unknown
local runner, jb, lease = ARGV[1], ARGV[2], ARGV[3]
local state = get(jb, 'state')
if state == '' then return 'unknown' end
if state == 'superseded' or state == 'cancelled' then return 'stale' end
if state == 'landed' then
  if is_holder(jb, runner, lease) then return 'already_landed' end
  return 'not_yours'
end
if not is_current(jb, get(jb, 'submission')) then
  supersede(jb, 'superseded', ARGV[10])
  return 'stale'
end
if not is_holder(jb, runner, lease) then return 'not_yours' end
land(jb, now_ms(), {status = ARGV[4], score = ARGV[5], time_ms = ARGV[6], memory_kib = ARGV[7],
  blob = ARGV[8], runner = runner}, ARGV[9], ARGV[10])
return 'landed'
