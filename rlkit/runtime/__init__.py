"""Every room may use this one; nothing here knows about learning.

It has these modules:
    distribution   the name that rlkit is installed by, and what it says of a missing extra
    files          files and folders that appear whole or not at all
    garbage        Python's collector of reference cycles, paused while it cannot find anything
    host_memory    pages that C's allocator holds without use, given back
    say            the type of a function that takes one line of progress
    signals        the signals that ask a run to stop
    triton         Triton, or one line that says how to install it
"""
