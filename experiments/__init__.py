"""One file per question: its docstring states the question, the command, the cost and the expected result."""
