"""The policy pack: what no stack may do, judged on the resources that the program registers."""
