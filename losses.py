"""The losses: adversarial, gradient penalty, distances between frames, and normality of the latents."""

from keras import ops

FIELDS = 32  # of a thumbnail's height and width: fewer miss what is small


def standard(real, fake):
    """Binary cross-entropy of the logits of real and of drawn clips: (d_adv, g_adv); 2 ln 2 and ln 2 at chance.

    g_adv is the non-saturating loss of Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661
    """
    return ops.mean(ops.softplus(-real)) + ops.mean(ops.softplus(fake)), ops.mean(ops.softplus(-fake))


def relativistic(real, fake):
    """Binary cross-entropy of the difference of the logits [B, L] of paired clips: (d_adv, g_adv); ln 2 at chance.

    Jolicoeur-Martineau 2018, https://arxiv.org/abs/1807.00734; with R1 and R2 beside it Huang et al. 2024,
    https://arxiv.org/abs/2501.05441
    """
    return ops.mean(ops.softplus(fake - real)), ops.mean(ops.softplus(real - fake))


def thumbnails(clips):
    """Clips [B, T, H, W, 3] -> [B, T, F]: the mean colour of each of FIELDS x FIELDS fields of a frame, F = 3 FIELDS^2.

    Smaller frames stay as they are.
    """
    batch, time, height, width, _ = clips.shape
    size = max(1, height // FIELDS), max(1, width // FIELDS)
    small = ops.average_pool(ops.reshape(clips, (-1, height, width, 3)), size, size)
    return ops.reshape(small, (batch, time, -1))


def distance_penalty(fake, real):
    """How much distances between drawn frames differ from those between real ones; thumbnails [B, T, F] -> >= 0.

    Of each kind of `distances`, the Wasserstein distance of the drawn and the real ones, which is the mean difference
    of the sorted numbers, in units of the mean real distance; summed.
    """
    return sum(ops.mean(ops.abs(ops.sort(of_fake) - ops.sort(of_real))) / (ops.mean(of_real) + 1e-4)
               for of_fake, of_real in zip(distances(fake), distances(real), strict=True))


def distances(x):
    """Root mean square differences of thumbnails x [B, T, F], as vectors.

    From the step before [B (T - 1)], from the clip before it in the batch [B T], and, field by field, from the step
    before [B (T - 1) F / 3].
    """
    change = x[:, 1:] - x[:, :-1]
    for difference in change, x - ops.roll(x, 1, axis=0), ops.reshape(change, (-1, 3)):
        yield ops.reshape(ops.sqrt(ops.mean(ops.square(difference), axis=-1) + 1e-8), (-1,))


def gradient_penalty(gradients):
    """|gradients|^2 / 2 of clips [B, ...], averaged over B: R1 of real clips, R2 of drawn ones.

    Mescheder et al. 2018, https://arxiv.org/abs/1801.04406
    """
    squares = ops.square(ops.reshape(gradients, (gradients.shape[0], -1)))
    return 0.5 * ops.mean(ops.sum(squares, axis=1))


def moments(x, axis):
    """Mean, standard deviation, skewness and kurtosis of x along `axis`; 0, 1, 0, 3 for normal numbers."""
    mean = ops.mean(x, axis=axis, keepdims=True)
    centred = x - mean
    std = ops.sqrt(ops.mean(ops.square(centred), axis=axis, keepdims=True) + 1e-8)
    z = centred / std
    squeeze = [ops.squeeze(m, axis=axis) for m in (mean, std)]
    return *squeeze, ops.mean(z**3, axis=axis), ops.mean(z**4, axis=axis)


def pooled_normality(outputs):
    """The original's normality penalty: the four moments of all numbers of a step together.

    outputs [B, T, Z] of the transition -> mean^2 + (std - 1)^2 + skewness^2 + (kurtosis - 3)^2, averaged over T.
    """
    mean, std, skewness, kurtosis = moments(outputs, axis=(0, 2))
    return ops.mean(mean**2 + (std - 1) ** 2 + skewness**2 + (kurtosis - 3) ** 2)


def chains_normality(outputs):
    """Normality of each coordinate across chains, at each step, and no correlation between coordinates.

    outputs [B, T, Z] of the transition -> mean^2 + (std - 1)^2 + skewness^2 / 10 + (kurtosis - 3)^2 / 100 across B, and
    a tenth of the sum of a coordinate's squared correlations across B with all others, averaged over T and Z. Higher
    moments are noisier, hence their smaller weights. Pooled moments stay normal where all chains run through one limit
    cycle; those across chains do not. Deviation and correlation as in VICReg, Bardes et al. 2022,
    https://arxiv.org/abs/2105.04906, but for a square in place of a hinge, and correlations in place of covariances:
    these are never 0 in few chains, and shrink with the deviation.
    """
    mean, std, skewness, kurtosis = moments(outputs, axis=0)
    normality = mean**2 + (std - 1) ** 2 + 0.1 * skewness**2 + 0.01 * (kurtosis - 3) ** 2
    steps = ops.transpose((outputs - mean) / std, (1, 2, 0))  # [T, Z, B]
    correlation = ops.matmul(steps, ops.swapaxes(steps, 1, 2)) / outputs.shape[0]
    others = ops.square(correlation * (1 - ops.eye(correlation.shape[-1])))
    return ops.mean(normality) + 0.1 * ops.mean(ops.sum(others, axis=-1))


NORMALITY = {"pooled": pooled_normality, "chains": chains_normality}
ADVERSARIAL = {"relativistic": relativistic, "standard": standard}
