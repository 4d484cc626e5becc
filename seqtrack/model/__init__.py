"""The network: encoder, decoder, and the two together."""
