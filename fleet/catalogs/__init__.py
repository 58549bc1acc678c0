"""What reads live specs and prices: a module and a process for each cloud, in the environment of the client libraries.

A reader gets a JSON request on standard input and gives a JSON answer on standard output (`reading.py`); it imports its
cloud's library and the standard library, and nothing else of the fleet.
"""
