-- Let a runner claim no more jobs, or let it again. Never recreates one that is gone.
-- KEYS[1] prefix
-- ARGV runner, 1 or 0
-- replies 1, or 0 (no such runner)
local meta = P .. 'runner:' .. ARGV[1] .. ':meta'
if redis.call('EXISTS', meta) == 0 then return 0 end
redis.call('HSET', meta, 'paused', ARGV[2])
return 1
