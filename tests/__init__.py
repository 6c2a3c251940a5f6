"""The tests. Those of a file `x` are in `test_x`; where several files do one thing together, they are tested so:

cli          commands demo: test_process, test_docs    offline: test_explain, test_process
gateway      front: test_drain, test_closing    listeners: test_process, test_wiring    trial: test_process, test_reload
admin        api endpoints handlers_config handlers_observe: test_admin_e2e, test_guarded
net          accept seats: test_many    client endable answering: test_closing, test_gateway, test_process
             receiving upload: test_local, test_desync, test_retries    relay sockets: test_closing, test_gateway
             holders last_words: test_upstream, test_pool    outgoing: test_forward, test_explain
pipeline     exchange: with each stage
record       rows: test_forward, test_options_effect
settings     options coherence: test_load, test_options_effect
store        database files: test_in_use, test_durability    catalog_tables: test_catalog    history: test_segments
             questions: test_journal
wire         text: test_request, test_response

`conformance`, `fuzz` and `soak` hold the whole against tables, made-up input and long runs; `bench` measures it.
"""
