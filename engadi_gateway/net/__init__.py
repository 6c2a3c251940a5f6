"""Sockets: clients' connections, upstreams' connections, and what passes between them.

a client's connection    accept seats (who may connect)  client (heads, decisions)  receiving (bodies)
                         answering (what it says itself, cuts)  endable (waits, the end)  batch (turns)
one exchange             forward (out and back)  upload (its body)  retries  giving_up  blame (whose doing)
                         relay (who is slow)  splice (after a 101)  outgoing (the head)  local (ours)
an upstream              origin (its URL)  pools pool (who gets which)  dial resolver  upstream (replies)
                         holders (whom it tells)  last_words (how it ended)
for all of them          context (what they share)  deadlines  sockets  fetch (our own requests)  pauses (between them)
"""
