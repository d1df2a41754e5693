-- Cancel a submission: a pending job is removed, a leased one is cancelled on its runner.
-- KEYS[1] prefix
-- ARGV submission, retention_s, tombstone_s
-- replies {unknown} {done} {cancelled}; cancelling twice is the same as once
local key = P .. 'submission:' .. ARGV[1]
local s = redis.call('HMGET', key, 'job', 'state')
if not s[1] then return {'unknown'} end
if s[2] == 'done' then return {'done'} end
supersede(s[1], 'cancelled', ARGV[3])
redis.call('HSET', key, 'state', 'cancelled')
redis.call('EXPIRE', key, ARGV[2])
return {'cancelled'}
