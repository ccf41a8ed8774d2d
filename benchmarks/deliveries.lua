-- For wrk: sends the requests of a file, one after another, and prints its figures as JSON.
--   wrk … --script deliveries.lua URL -- FILE
-- FILE: per request its length in decimal, a line feed, and the request as it goes over the wire; or a pipe of that.
-- At the end it starts again: what comes then are duplicates, and `measure.py` refuses the figure.

local file

function init(arguments)
  file = assert(io.open(arguments[1], "rb"))
end

function request()
  local length = file:read("*n")
  if not length then
    file:seek("set")
    length = file:read("*n")
  end
  file:read(1)
  return file:read(length)
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "failed": %d, "p50_ms": %.3f, "p99_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
