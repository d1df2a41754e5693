-- One tick: every orphan (a lease past its deadline, INV2) goes back to its place, or lands
-- Judge Error when its attempts are used up (INV5). One winner per tick over all processes.
-- A gap in the ticks means that Redis or every server was down, and nobody could renew: then no
-- lease is judged expired for one lease TTL (INV6).
-- An orphan keeps runner and lease until somebody reclaims it, so that its late report is taken.
-- KEYS[1] prefix
-- ARGV tick_ms, gap_ms, lease_ttl_ms, max_attempts, retention_s, tombstone_s, limit
-- replies {not_yet} {grace, until_ms} {ticked, {requeued jobs}, {exhausted jobs}}
local at = now_ms()
local last = tonumber(redis.call('GET', P .. 'dispatch:tick') or '')
if last and at >= last and at - last < tonumber(ARGV[1]) * 0.8 then return {'not_yet'} end
redis.call('SET', P .. 'dispatch:tick', whole(at))
-- The very first tick has no past: then only leases that are there already are of an outage.
local first = not last and redis.call('ZCARD', P .. 'jobs:leased') > 0
if first or (last and (at - last > tonumber(ARGV[2]) or at < last)) then
  redis.call('SET', P .. 'dispatch:grace', whole(at + tonumber(ARGV[3])), 'PX', ARGV[3])
end
local grace = tonumber(redis.call('GET', P .. 'dispatch:grace') or '0')
if grace > at then return {'grace', whole(grace)} end
local requeued, exhausted = {}, {}
local due = redis.call('ZRANGEBYSCORE', P .. 'jobs:leased', '-inf', whole(at), 'LIMIT', 0, ARGV[7])
for _, jb in ipairs(due) do
  local sid = get(jb, 'submission')
  if get(jb, 'state') ~= 'leased' then
    redis.call('ZREM', P .. 'jobs:leased', jb)
  elseif not is_current(jb, sid) then
    supersede(jb, 'superseded', ARGV[6])
  else
    local runner = get(jb, 'runner')
    note(jb, at, runner, get(jb, 'lease'), 'lease_expired', '')
    redis.call('LPUSH', P .. 'dispatch:orphans', table.concat({whole(at), jb, runner}, '\31'))
    redis.call('LTRIM', P .. 'dispatch:orphans', 0, 19)
    redis.call('EXPIRE', P .. 'dispatch:orphans', ARGV[6])
    if tonumber(get(jb, 'attempts')) >= tonumber(ARGV[4]) then
      land_judge_error(jb, at, runner, ARGV[5], ARGV[6])
      exhausted[#exhausted + 1] = jb
    else
      release(jb)
      to_pending(jb)
      requeued[#requeued + 1] = jb
    end
  end
end
return {'ticked', requeued, exhausted}
