"""The admin API: one table of endpoints, from which routing, handlers and the OpenAPI document are made."""
