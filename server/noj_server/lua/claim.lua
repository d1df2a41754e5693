-- Lease the best pending job to a runner: lowest score over its languages, which is highest
-- priority, then first arrival. attempts grows here and nowhere else (INV5). A repeat with the
-- same idempotency key gets the same job again, if it still holds it.
-- KEYS[1] prefix
-- ARGV runner, lease, idempotency key or '', lease_ttl_ms, max_jobs, languages…
-- replies {claimed, job, deadline_ms, HGETALL} {none} {full} {paused} {revoked}
local runner, lease, key = ARGV[1], ARGV[2], ARGV[3]
local memo = P .. 'claim:' .. runner .. ':' .. key
local held = P .. 'runner:' .. runner .. ':jobs'
-- Its poll may be parked in another process than the one that was told to revoke it.
if redis.call('EXISTS', P .. 'runner:' .. runner .. ':revoked') == 1 then return {'revoked'} end
if key ~= '' then
  local before = redis.call('GET', memo)
  if before then
    local jb, old = string.match(before, '^(%S+) (%S+)$')
    if get(jb, 'state') == 'leased' and is_holder(jb, runner, old) then
      return {'claimed', jb, redis.call('ZSCORE', P .. 'jobs:leased', jb),
        redis.call('HGETALL', job_key(jb))}
    end
  end
end
if redis.call('HGET', P .. 'runner:' .. runner .. ':meta', 'paused') == '1' then
  return {'paused'}
end
if redis.call('SCARD', held) >= tonumber(ARGV[5]) then return {'full'} end
for _ = 1, 100 do
  local best, best_score, best_key
  for i = 6, #ARGV do
    local first = redis.call('ZRANGE', P .. 'jobs:pending:' .. ARGV[i], 0, 0, 'WITHSCORES')
    if first[1] and (not best or tonumber(first[2]) < best_score) then
      best, best_score, best_key = first[1], tonumber(first[2]), P .. 'jobs:pending:' .. ARGV[i]
    end
  end
  if not best then return {'none'} end
  redis.call('ZREM', best_key, best)
  local sid = get(best, 'submission')
  -- A superseded job is never handed out; it was buried when that happened.
  if get(best, 'state') == 'pending' and is_current(best, sid) then
    local at = now_ms()
    local deadline = whole(at + tonumber(ARGV[4]))
    redis.call('HINCRBY', job_key(best), 'attempts', 1)
    redis.call('HSET', job_key(best), 'state', 'leased', 'lease', lease, 'runner', runner,
      'leased_ms', whole(at))
    redis.call('ZADD', P .. 'jobs:leased', deadline, best)
    redis.call('SADD', held, best)
    redis.call('HSET', P .. 'submission:' .. sid, 'state', 'judging')
    if key ~= '' then
      redis.call('SET', memo, best .. ' ' .. lease, 'PX', whole(2 * tonumber(ARGV[4])))
    end
    return {'claimed', best, deadline, redis.call('HGETALL', job_key(best))}
  end
end
return {'none'}
