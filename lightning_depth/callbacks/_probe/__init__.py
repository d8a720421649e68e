"""Parts of the separability probe: batches, features, samples, measures and figures."""
