"""What a trained model is worth: likelihoods, rate, probes, clustering, denoising."""
