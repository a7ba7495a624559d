"""Every room may use this one; nothing here knows about learning.

distribution The name that rlkit is installed by, and what it says where an extra is missing
files       Files and folders that appear whole or not at all
garbage     Python's collector of reference cycles, paused while it cannot find anything
host_memory Pages that C's allocator holds without use, given back
say         The type of a function that takes one line of progress
triton      Triton, or one line that says how to install it
"""
