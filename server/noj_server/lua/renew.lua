-- A heartbeat's leases: extend those that are the runner's. A job whose lease expired, but that
-- nobody reclaimed, becomes its again (its work is not thrown away).
-- KEYS[1] prefix
-- ARGV runner, lease_ttl_ms, tombstone_s, then pairs: job, lease or ''
-- reply {renewed…} {cancel…} {lost…}
local runner = ARGV[1]
local renewed, cancel, lost = {}, {}, {}
local deadline = whole(now_ms() + tonumber(ARGV[2]))
for i = 4, #ARGV, 2 do
  local jb, lease = ARGV[i], ARGV[i + 1]
  local state = get(jb, 'state')
  if not is_holder(jb, runner, lease) then
    lost[#lost + 1] = jb
  elseif state == 'superseded' or state == 'cancelled' then
    cancel[#cancel + 1] = jb
  elseif state == 'leased' or state == 'pending' then
    if not is_current(jb, get(jb, 'submission')) then
      supersede(jb, 'superseded', ARGV[3])
      cancel[#cancel + 1] = jb
    else
      if state == 'pending' then
        off_pending(jb)
        redis.call('HSET', job_key(jb), 'state', 'leased')
        redis.call('SADD', P .. 'runner:' .. runner .. ':jobs', jb)
        redis.call('HSET', P .. 'submission:' .. get(jb, 'submission'), 'state', 'judging')
      end
      redis.call('ZADD', P .. 'jobs:leased', deadline, jb)
      renewed[#renewed + 1] = jb
    end
  end -- landed: its report has been taken, the runner will learn that by repeating it
end
return {renewed, cancel, lost}
