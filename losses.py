"""What the networks are asked for: to tell real from generated, to fool, and to stay normally distributed."""

import math

from keras import ops


def discriminator_loss(real, fake):
    """Binary cross-entropy of the logits of real and of generated clips, each averaged; 2 ln 2 at chance."""
    return ops.mean(ops.softplus(-real)) + ops.mean(ops.softplus(fake))


def generator_loss(fake):
    """Binary cross-entropy of generated clips taken for real: the non-saturating loss of Goodfellow et al. 2014."""
    return ops.mean(ops.softplus(-fake))


def relative(real, fake):
    """How much more real each real clip is than the drawn one beside it, and the other way round; logits [B, L].

    In place of the logits themselves: a generator that is good at one kind of clip gains nothing by drawing no other,
    as it is judged against all kinds (Jolicoeur-Martineau, "The relativistic discriminator", 2018).
    """
    return real - fake, fake - real


def thumbnails(clips):
    """Clips [B, T, H, W, 3] -> [B, T, F], F = 192: the mean colour of each of 8x8 fields of each frame."""
    batch, time, height, width, _ = clips.shape
    fields = height // 8, width // 8
    small = ops.average_pool(ops.reshape(clips, (-1, height, width, 3)), fields, fields)
    return ops.reshape(small, (batch, time, -1))


def distance_penalty(fake, real):
    """How much further apart, or less, generated frames are than real ones; thumbnails [B, T, F] of clips -> 0 or more.

    There are three kinds of distances: of each frame from the one before, as a whole and field by field, and from the
    frame of another clip. The sorted distances of generated clips are compared with those of real ones, which is the
    Wasserstein distance of the two distributions; in units of the mean real distance, added up. A discriminator of
    clips sees too little of it: a lamp that rests looks right nearly always, and where it jumps there is hardly ever a
    clip.
    """
    return sum(ops.mean(ops.abs(ops.sort(ours) - ops.sort(theirs))) / (ops.mean(theirs) + 1e-4)
               for ours, theirs in zip(distances(fake), distances(real), strict=True))


def distances(x):
    """Root mean square differences of thumbnails x [B, T, F], as vectors.

    From the step before [B (T - 1)], from the next clip [B T], and from the step before field by field.
    """
    change = x[:, 1:] - x[:, :-1]
    for difference in change, x - ops.roll(x, 1, axis=0), ops.reshape(change, (-1, 3)):
        yield ops.reshape(ops.sqrt(ops.mean(ops.square(difference), axis=-1) + 1e-8), (-1,))


def gradient_penalty(gradients):
    """R1 of real clips, R2 of drawn ones (Mescheder et al. 2018): half the squared length of the logits' gradients.

    By clips [B, ...], averaged over B.
    """
    squares = ops.square(ops.reshape(gradients, (ops.shape(gradients)[0], -1)))
    return 0.5 * ops.mean(ops.sum(squares, axis=1))


def moments(x, axis):
    """Mean, standard deviation, skewness and kurtosis of x along `axis`; 0, 1, 0, 3 for normal numbers."""
    mean = ops.mean(x, axis=axis, keepdims=True)
    centred = x - mean
    std = ops.sqrt(ops.mean(ops.square(centred), axis=axis, keepdims=True) + 1e-8)
    z = centred / std
    squeeze = [ops.squeeze(m, axis=axis) for m in (mean, std)]
    return *squeeze, ops.mean(z**3, axis=axis), ops.mean(z**4, axis=axis)


def moments_penalty(outputs):
    """The original's normality penalty: the four moments of all numbers of a step together.

    outputs [B, T, Z] of the transition -> mean^2 + (std - 1)^2 + skewness^2 + (kurtosis - 3)^2, averaged over T.
    """
    mean, std, skewness, kurtosis = moments(outputs, axis=(0, 2))
    return ops.mean(mean**2 + (std - 1) ** 2 + skewness**2 + (kurtosis - 3) ** 2)


def chains_penalty(outputs):
    """Normality of each coordinate across chains, at each step, and no correlation between coordinates.

    Moments of all numbers together are as normal when every chain runs through one and the same loop; across
    chains, at one moment, such a loop has no spread. outputs [B, T, Z] of the transition -> mean^2 + (std - 1)^2
    + skewness^2 / 10 + (kurtosis - 3)^2 / 100, averaged over T and Z (the higher moments weigh less because a
    sample of some hundred chains knows them less well), + a tenth of the squared covariances of a coordinate with
    all others, averaged likewise.
    """
    mean, std, skewness, kurtosis = moments(outputs, axis=0)
    normality = mean**2 + (std - 1) ** 2 + 0.1 * skewness**2 + 0.01 * (kurtosis - 3) ** 2
    steps = ops.transpose(outputs - mean, (1, 2, 0))  # [T, Z, B]
    covariance = ops.matmul(steps, ops.swapaxes(steps, 1, 2)) / outputs.shape[0]
    return ops.mean(normality) + off_diagonal(covariance)


def pace_penalty(latents, past, pace):
    """How differently the states move from the footage: latents [B, T, Z] -> 0 or more, averaged over lags.

    `pace` says for each lag, in steps, how far frames of the footage that lie it apart are from each other, as a share
    of how far frames of independent times are (`data.pace`): one share, or one a coordinate, [Z]. The states shall move
    by it: the way of a coordinate has a standard deviation of sqrt(2) times its share, as that between independent
    normal numbers is sqrt(2), and no two ways correlate. In these units deviations of (std - 1)^2 count, averaged over
    Z, + a tenth of the squared covariances of a way with all others, averaged likewise.

    A lag of less than T steps is taken within the latents, a longer one back into the `past` [B, P, Z] before them,
    which is known and gets no gradient. Without the penalty directions that the generator hardly draws turn fast, a
    whole turn in 16 steps, and the picture trembles; without the longer lags all come to turn at one pace.
    """
    steps, whole = latents.shape[1], ops.concatenate([ops.stop_gradient(past), latents], axis=1)

    def ways(lag):
        begin = -steps + (lag if lag < steps else 0)
        return whole[:, begin:] - whole[:, begin - lag:-lag]

    return sum(displacement_penalty(ways(lag) / (math.sqrt(2) * share)) for lag, share in pace.items()) / len(pace)


def displacement_penalty(ways):
    """How far from 1 the deviations of ways [B, T, Z] are, and their covariances from 0; of all B and T together."""
    ways = ops.reshape(ways, (-1, ways.shape[-1]))
    std = ops.sqrt(ops.mean(ops.square(ways), axis=0) + 1e-8)
    covariance = ops.matmul(ops.transpose(ways), ways) / ways.shape[0]
    return ops.mean(ops.square(std - 1)) + off_diagonal(covariance)


def off_diagonal(covariance):
    """A tenth of the squared covariances [..., Z, Z] of a coordinate with all others, averaged."""
    others = covariance * (1 - ops.eye(covariance.shape[-1]))
    return 0.1 * ops.mean(ops.sum(ops.square(others), axis=-1))


PENALTIES = {"moments": moments_penalty, "chains": chains_penalty}
