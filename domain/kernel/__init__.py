"""What every aggregate is made of: deciders, refusals, named events, persistent containers, periods."""
