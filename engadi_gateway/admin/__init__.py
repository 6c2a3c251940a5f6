"""The admin API: one table of endpoints, from which routing, handlers and the OpenAPI document are made.

the table            endpoints  api (what a row is, and how it is served)  openapi
behind it            handlers_config (configuration)  handlers_observe (health, log, statistics, explain)
what comes, goes     schemas (inputs)  replies (their schemas)  jsonio  media (what a client prefers)
"""
