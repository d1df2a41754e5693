-- A runner was heard of: its identity lives on. Never recreates one that is gone.
-- KEYS[1] prefix
-- ARGV runner, identity_ttl_s, alive_ttl_ms, then pairs: meta field, value
-- replies 1, or 0 (no such runner)
local base = P .. 'runner:' .. ARGV[1]
if redis.call('EXISTS', base .. ':meta') == 0 then return 0 end
redis.call('EXPIRE', base .. ':meta', ARGV[2])
redis.call('EXPIRE', base .. ':token_hash', ARGV[2])
redis.call('EXPIRE', P .. 'token:' .. (redis.call('GET', base .. ':token_hash') or ''), ARGV[2])
redis.call('SET', base .. ':alive', '1', 'PX', ARGV[3])
redis.call('ZADD', P .. 'runners:registered', whole(now_ms()), ARGV[1])
for i = 4, #ARGV, 2 do redis.call('HSET', base .. ':meta', ARGV[i], ARGV[i + 1]) end
return 1
