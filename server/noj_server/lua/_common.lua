-- Put before every script. KEYS[1] is the key prefix: all keys share its hash tag and so one
-- slot, which makes names built here legal in a cluster. Must run on Redis 7 and on fakeredis:
-- plain commands only, no cjson.
local P = KEYS[1]

local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function whole(x) return string.format('%.0f', tonumber(x)) end

local function job_key(jb) return P .. 'job:' .. jb end

local function get(jb, field) return redis.call('HGET', job_key(jb), field) or '' end

-- INV4: only the newest job of a submission counts, and a cancelled submission has none.
local function is_current(jb, sid)
  local s = redis.call('HMGET', P .. 'submission:' .. sid, 'job', 'state')
  return s[1] == jb and s[2] ~= 'cancelled'
end

-- INV3: is this report made under the job's present lease? Clients that send no lease id are
-- told apart by runner alone.
local function is_holder(jb, runner, lease)
  local h = redis.call('HMGET', job_key(jb), 'runner', 'lease')
  return h[1] == runner and h[2] and h[2] ~= '' and (lease == '' or h[2] == lease)
end

local function note(jb, at, runner, lease, reason, detail)
  redis.call('RPUSH', job_key(jb) .. ':history',
    table.concat({whole(at), runner, lease, reason, detail}, '\31'))
  -- Drains are not counted: without a bound, a runner that drains for ever would fill Redis.
  redis.call('LTRIM', job_key(jb) .. ':history', -100, -1)
end

-- Take a job off its runner's hands.
local function release(jb)
  redis.call('ZREM', P .. 'jobs:leased', jb)
  local runner = get(jb, 'runner')
  if runner ~= '' then redis.call('SREM', P .. 'runner:' .. runner .. ':jobs', jb) end
end

-- Back to its old place: the score holds priority and first arrival, so it stands in front of
-- all that came later.
local function to_pending(jb)
  redis.call('HSET', job_key(jb), 'state', 'pending')
  redis.call('ZADD', P .. 'jobs:pending:' .. get(jb, 'language'), get(jb, 'score'), jb)
  redis.call('HSET', P .. 'submission:' .. get(jb, 'submission'), 'state', 'pending')
  redis.call('PUBLISH', P .. 'wake', get(jb, 'language'))
end

local function off_pending(jb)
  redis.call('ZREM', P .. 'jobs:pending:' .. get(jb, 'language'), jb)
end

-- A job that has ended stays a while as a tombstone, so that a repeated report gets its answer.
local function bury(jb, state, tombstone_s)
  redis.call('HSET', job_key(jb), 'state', state)
  redis.call('EXPIRE', job_key(jb), tombstone_s)
  redis.call('EXPIRE', job_key(jb) .. ':history', tombstone_s)
end

-- INV1: the job ends and its final result is recorded, in this one step.
local function land(jb, at, result, retention_s, tombstone_s)
  local sid = get(jb, 'submission')
  release(jb)
  off_pending(jb)
  bury(jb, 'landed', tombstone_s)
  redis.call('EXPIRE', job_key(jb) .. ':history', retention_s)
  redis.call('HSET', P .. 'submission:' .. sid, 'state', 'done', 'status', result.status,
    'score', result.score, 'time_ms', result.time_ms, 'memory_kib', result.memory_kib,
    'result_blob', result.blob, 'runner', result.runner, 'attempts', get(jb, 'attempts'),
    'landed_ms', whole(at))
  redis.call('EXPIRE', P .. 'submission:' .. sid, retention_s)
  local id = redis.call('XADD', P .. 'results', 'MINID', '~', whole(at - retention_s * 1000), '*',
    'submission', sid, 'job', jb, 'problem', get(jb, 'problem'), 'status', result.status,
    'score', result.score, 'time_ms', result.time_ms, 'memory_kib', result.memory_kib,
    'runner', result.runner, 'attempts', get(jb, 'attempts'), 'landed_ms', whole(at))
  redis.call('PUBLISH', P .. 'landed', id)
end

local function land_judge_error(jb, at, runner, retention_s, tombstone_s)
  land(jb, at, {status = '6', score = '0', time_ms = '0', memory_kib = '0', blob = '',
    runner = runner}, retention_s, tombstone_s)
  -- A late report under this lease comes too late: it must not look as if it had landed.
  redis.call('HSET', job_key(jb), 'lease', '')
end

local function new_job(jb, sid, s, priority, at)
  local seq = redis.call('INCR', P .. 'dispatch:seq')
  local score = whole((100 - tonumber(priority)) * 1e13 + seq)
  redis.call('HSET', job_key(jb), 'submission', sid, 'problem', s.problem, 'version', s.version,
    'language', s.language, 'blob', s.blob, 'priority', priority, 'score', score,
    'state', 'pending', 'attempts', '0', 'lease', '', 'runner', '', 'created_ms', whole(at))
  redis.call('ZADD', P .. 'jobs:pending:' .. s.language, score, jb)
  redis.call('PUBLISH', P .. 'wake', s.language)
end

-- End a job without a result, because its submission has a newer one or was cancelled. A holder
-- learns it from its next heartbeat.
local function supersede(jb, state, tombstone_s)
  local old = get(jb, 'state')
  if old == 'pending' or old == 'leased' then
    release(jb)
    off_pending(jb)
    bury(jb, state, tombstone_s)
    return old
  end
  return ''
end
