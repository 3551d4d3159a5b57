"""`vl serve`: one model for many callers over HTTP, in the words of OpenAI's API.

A request comes through `gate` (keys, a place), is read by `body` and `openai`, becomes a prompt by `prompts` in a
thread, is answered by `vl.engine.AsyncEngine` and written by `chat` or `completions`. `app` ties them together,
`running` serves it.
"""
