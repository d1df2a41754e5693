-- A new job for a submission; the old one is superseded at once (INV4). Repeating it with the
-- same new job changes nothing.
-- KEYS[1] prefix
-- ARGV submission, new job, version, tombstone_s
-- replies {unknown} {rejudged, superseded job or '', its former state or ''}
local sid, jb = ARGV[1], ARGV[2]
local key = P .. 'submission:' .. sid
local s = redis.call('HMGET', key, 'job', 'problem', 'language', 'blob', 'priority')
if not s[1] then return {'unknown'} end
if s[1] == jb then return {'rejudged', '', ''} end
local was = supersede(s[1], 'superseded', ARGV[4])
redis.call('PERSIST', key)
redis.call('HDEL', key, 'status', 'score', 'time_ms', 'memory_kib', 'result_blob', 'runner',
  'attempts', 'landed_ms')
redis.call('HSET', key, 'state', 'pending', 'job', jb, 'version', ARGV[3])
new_job(jb, sid, {problem = s[2], version = ARGV[3], language = s[3], blob = s[4]}, s[5], now_ms())
return {'rejudged', was ~= '' and s[1] or '', was}
