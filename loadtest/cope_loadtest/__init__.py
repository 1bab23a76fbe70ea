"""A load test for video chat servers that speak OpenAI's API: a client and nothing more, whatever the server is.

Only `corpus` imports other packages of this repository, to draw and to look into clips; servers are spoken to over
HTTP.
"""
