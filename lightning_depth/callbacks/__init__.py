"""Callbacks for any Trainer and any LightningModule."""
