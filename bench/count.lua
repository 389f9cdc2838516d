-- One contestant, by itself, for a tool that counts instructions:
--
--   valgrind --tool=callgrind ./ckvm-lua bench/count.lua lua_out 1000

package.path = arg[0]:match("^(.*)/") .. "/?.lua;" .. package.path
package.cpath = "./bench/.libs/?.so;" .. package.cpath

local name, exits = arg[1], math.tointeger(arg[2])
require("contestants")[name]()(exits)
