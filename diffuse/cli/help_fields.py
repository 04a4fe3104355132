"""The request fields in `diffuse --help`. Written by tests/support/field_texts.py from diffuse/schema.py."""

FIELDS = """\
  prompt                          what the picture shows; taken literally
  negative_prompt                 what the picture does not show
  prompt_2, negative_prompt_2     for SDXL's second text encoder; null is the first one's
  long_prompt=cut|chunk           whether a prompt beyond the encoder's tokens (77 in most) is cut, or read in chunks
  prompt_syntax=plain|weighted    weighted: (word:1.3) weighs 1.3, (word) 1.1, [word] 1 / 1.1, in all four prompts
  clip_skip                       last layers of the text encoders to leave out, for the prompt and not the negative one
  seed                            image i uses seed + i; drawn where not given
  num_images                      how many images a run makes
  width, height                   of the picture, in pixels
  num_frames                      of the film: a multiple of 8, and one more
  fit=refuse|shrink               whether what is larger than the memory profile is for is refused, or made smaller
  fps                             frames of the film a second, such as 24 or 29.97
  num_inference_steps             more are slower and finer
  timesteps                       those to visit, such as [999,749,499,249], instead of the scheduler's own choice
  sigmas                          noise levels to visit, such as [14.6,3.9,1.4,0.4], by scheduler=euler and its kin
  guidance_scale                  how closely to follow the prompt; 0 and 1 switch guidance off
  guidance_rescale                0-1: back towards the contrast of a picture without guidance
  audio_guidance_scale, audio_guidance_rescale
                                  the same of a film's sound; null is the picture's
  modality_scale                  of films: how closely picture and sound follow one another; 1 switches it off
  audio_modality_scale            the same of a film's sound; null is the picture's
  stg_scale                       of films: how far to go from a prediction with perturbed attention; 0: not at all
  audio_stg_scale                 the same of a film's sound; null is the picture's
  stg_blocks                      the transformer's blocks whose attention is perturbed, such as [28]
  original_width, original_height
                                  SDXL: pixels of the picture to imagine, before scaling
  crop_left, crop_top             SDXL: pixels that were cropped off that picture
  target_width, target_height     SDXL: pixels of that picture after scaling
  aesthetic_score                 0-10: how pleasing SDXL's refiner is to imagine the picture
  negative_aesthetic_score        0-10: how pleasing the picture is that guidance leads away from
  denoising_end                   0-1: the share of the denoising after which a refiner takes over
  input_image                     a picture to start from; width and height are its own unless given
  mask_image                      of the same size: white is painted anew, black is kept
  strength                        above 0, up to 1: how far the picture may change; 0.8, or 1 with a mask
  resize=stretch|crop|pad         how a picture of another size is made to fit; stretch where not given
  input_crf                       of films: how strongly given pictures are compressed first, as by H.264; 0: not at all
  keep_unmasked                   true returns pixels outside the mask unchanged
  last_image                      of films: a picture that it ends with
  input_video                     of films: a clip to go on from; width, height and fps are its own unless given
  num_conditioning_frames         how many last frames of input_video: a multiple of 8, and one more; 17 if not set
  frame_index                     the frame of the film that input_image is; 0 where not given, -1 is the last
  conditioning_strength           above 0, up to 1: how far a film keeps what it is given; 1 where not given
  last_image_strength             the same of last_image alone
"""
