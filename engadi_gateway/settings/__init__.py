"""What an operator can say: the table of options, what their texts mean, and where they come from.

the table            options
from text to values  sources (who says what)  parsing (a text's meaning)  coherence (of all together)  load (`Settings`)
"""
