"""`vl bench serve` and `vl bench soak`: a server under load, measured by its clients, and whether it bears it.

`client` asks, `requests` makes what is asked, `load` sends it, `figures` says what came of it; `process` starts a
server where none is given. `soak` has many clients do well and badly for a time; `audit` looks at what they left.
"""
