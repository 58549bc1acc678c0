"""What Prometheus scrapes: latencies as users feel them, queue and tokens."""

from prometheus_client import Counter, Gauge, Histogram

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)

requests = Counter("frontend_requests", "Requests by path, status and API key.", ["path", "status", "key"])
tokens = Counter("frontend_tokens", "Tokens of prompts and of answers.", ["kind"])
prompt_tokens, completion_tokens = tokens.labels("prompt"), tokens.labels("completion")
in_flight = Gauge("frontend_sequences_in_flight", "Sequences asked of the engine, waiting or running.")
waiting = Gauge("frontend_sequences_waiting", "Sequences without a first token yet: the queue.")
first_token = Histogram("frontend_time_to_first_token_seconds", "From request to first token.", buckets=LATENCY_BUCKETS)
inter_token = Histogram("frontend_inter_token_latency_seconds", "Between tokens of a sequence.", buckets=TOKEN_BUCKETS)
duration = Histogram("frontend_request_duration_seconds", "From request to end of answer.", buckets=LATENCY_BUCKETS)
