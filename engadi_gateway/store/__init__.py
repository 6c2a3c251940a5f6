"""What is kept: the catalog (configuration) and the journal (request log), each a sqlite file of its own.

a sqlite file        database (the door to sqlite3)  in_use (open)  at_rest (only looked at)  schema (versions)
                     worker (writes)  readers (reads)  locks (who may)  files  pages (its size)  errors
the configuration    catalog  catalog_tables (its SQL)  changes (what a write makes of it)  seed (of the settings)
                     codec (values as JSON)
the request log      journal  intake (rows on their way in)  segments (its tables)  kinds (what rows have in common)
                     questions (what /logs asks)  find (by which index)  ageing (when rows are old)
                     history (its older schema)
its statistics       tally (rows that are not counted yet)  sums (what rows add up to)  rollup (by minute and hour)
"""
