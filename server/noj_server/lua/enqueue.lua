-- A new submission and its first job. The same submission again changes nothing.
-- KEYS[1] prefix
-- ARGV submission, job, problem, version, language, blob, user, priority
-- replies {created, job} {exists, current job}
local sid, jb = ARGV[1], ARGV[2]
local key = P .. 'submission:' .. sid
if redis.call('EXISTS', key) == 1 then return {'exists', redis.call('HGET', key, 'job')} end
local at = now_ms()
redis.call('HSET', key, 'state', 'pending', 'job', jb, 'problem', ARGV[3], 'version', ARGV[4], 'language', ARGV[5],
  'blob', ARGV[6], 'user', ARGV[7], 'priority', ARGV[8], 'created_ms', whole(at))
new_job(jb, sid, {problem = ARGV[3], version = ARGV[4], language = ARGV[5], blob = ARGV[6]},
  ARGV[8], at)
return {'created', jb}
