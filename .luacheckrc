std = "lua54"
max_line_length = 100
files["tests/*_spec.lua"] = { std = "+busted" }
files["tests/support.lua"] = { std = "+busted" }
