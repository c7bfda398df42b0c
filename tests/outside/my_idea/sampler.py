from ddpm_lightning.diffusion.samplers import SingleStep


class Renoise(SingleStep):
    """Predict x0, and noise it anew to the next level."""

    def step(self, prediction, s, noise):
        """x_s = alpha_s·x0_hat + sigma_s·eps with fresh noise."""
        level = prediction.schedule.level(s, like=prediction.x_t)
        return level.alpha * prediction.x0 + level.sigma * noise()
