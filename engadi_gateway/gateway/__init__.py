"""The composition: builds the house from settings, listens, swaps configurations, reloads, drains.

its life             gateway (start, reload, stop)  assembly (options become values)  upkeep (over days)
the configuration    configuration (what is served, and writes)  compiler (what is made of it)  sharing (processes)
the doors            listeners (bound)  front (while it serves)  tls
who asks it          upcalls (connections)  console (the admin API)
what it says         trial (faults that only trying shows)  amiss (though it serves)  secret (the key, and whence)
"""
