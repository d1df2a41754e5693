-- A runner gives a job back. A drain refunds the attempt; any other reason keeps it, and the
-- last attempt lands Judge Error (INV5). Repeating it under the same lease answers the same.
-- KEYS[1] prefix
-- ARGV runner, job, lease or '', reason, detail, max_attempts, retention_s, tombstone_s
-- replies requeued, judge_error, stale, not_yours, unknown
local runner, jb, lease, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local state = get(jb, 'state')
if state == '' then return 'unknown' end
if state == 'superseded' or state == 'cancelled' then return 'stale' end
local a = redis.call('HMGET', job_key(jb), 'aborted', 'aborted_by')
if a[2] == runner and (lease == '' or a[1] == lease) and get(jb, 'lease') == '' then
  if state == 'landed' then return 'judge_error' end
  return 'requeued'
end
if state == 'landed' or not is_holder(jb, runner, lease) then return 'not_yours' end
if not is_current(jb, get(jb, 'submission')) then
  supersede(jb, 'superseded', ARGV[8])
  return 'stale'
end
local at, held = now_ms(), get(jb, 'lease')
if state == 'leased' then
  note(jb, at, runner, held, reason, ARGV[5])
  if reason == 'drain' then redis.call('HINCRBY', job_key(jb), 'attempts', -1) end
  if tonumber(get(jb, 'attempts')) >= tonumber(ARGV[6]) then
    redis.call('HSET', job_key(jb), 'aborted', held, 'aborted_by', runner)
    land_judge_error(jb, at, runner, ARGV[7], ARGV[8])
    return 'judge_error'
  end
  release(jb)
  to_pending(jb)
end -- pending: its lease had expired and the sweeper has requeued it already
redis.call('HSET', job_key(jb), 'lease', '', 'runner', '', 'aborted', held, 'aborted_by', runner)
return 'requeued'
