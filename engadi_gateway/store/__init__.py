"""What is kept: the catalog (configuration) and the journal (request log), each a sqlite file of its own."""
