-- Contestants take turns in small slices, so that whatever else the machine does hits all of them;
-- what counts is the ratio of two slices of one round, and the median of these over all rounds.

local loops = require "loops"

local rounds = {}

-- The value below which `share` of the list is.
function rounds.quantile(list, share)
  local sorted = table.move(list, 1, #list, 1, {})
  table.sort(sorted)
  return sorted[math.max(1, math.ceil(#sorted * share))]
end

function rounds.median(list)
  return rounds.quantile(list, 0.5)
end

-- The caches have to know it again first: whoever ran before is another one each time.
local function time_slice(entrant)
  entrant.run(math.ceil(entrant.count / 10))
  local start <const> = loops.now()
  entrant.run(entrant.count)
  return (loops.now() - start) / entrant.count
end

local function shuffle(list)
  for i = #list, 2, -1 do
    local j = math.random(i)
    list[i], list[j] = list[j], list[i]
  end
end

-- entrants: { name =, run = function(count), count = }. Returns seconds by name, one per round.
-- The order changes from round to round, so that nobody always follows the same neighbour.
function rounds.take_turns(entrants, count)
  local order, times = table.move(entrants, 1, #entrants, 1, {}), {}
  for _, entrant in ipairs(entrants) do times[entrant.name] = {} end
  math.randomseed(1)
  for round = 1, count do
    shuffle(order)
    for _, entrant in ipairs(order) do times[entrant.name][round] = time_slice(entrant) end
  end
  return times
end

function rounds.ratios(times, others)
  local ratios = {}
  for round, time in ipairs(times) do ratios[round] = time / others[round] end
  return ratios
end

return rounds
