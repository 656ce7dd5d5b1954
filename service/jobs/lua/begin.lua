-- Starts the attempt at an entry that a blocking read delivered, unless another worker took it meanwhile.
local owner, hint, queue, entry, id = unpack(ARGV)
if not holds(queue, entry, owner) then return false end
return attempt(id, queue, entry, owner, hint) or false
