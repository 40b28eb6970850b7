"""Other people's systems behind small ports of ours: payments, mail, storage, the bus."""
