/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "texts.h"

#include <stdlib.h>
#include <string.h>

void msh_texts_init(MshTexts *texts)
{
    memset(texts, 0, sizeof *texts);
    pthread_mutex_init(&texts->lock, NULL);
}

void msh_texts_fini(MshTexts *texts)
{
    for (size_t i = 0; i < texts->count; i++)
        free(texts->kept[i]);
    pthread_mutex_destroy(&texts->lock);
}

static const char *keep(MshTexts *texts, const char *value)
{
    for (size_t i = 0; i < texts->count; i++)
        if (strcmp(texts->kept[i], value) == 0)
            return texts->kept[i];
    char *copy = texts->count < MSH_TEXTS_MAX ? strndup(value, MSH_TEXT_BYTES - 1) : NULL;
    if (!copy)
        return "too many different reasons to tell the last one";
    return texts->kept[texts->count++] = copy;
}

void msh_text_set(MshTexts *texts, MshText *text, const char *value)
{
    const char *kept = NULL;
    if (value && *value) {
        pthread_mutex_lock(&texts->lock);
        kept = keep(texts, value);
        pthread_mutex_unlock(&texts->lock);
    }
    atomic_store_explicit(text, kept, memory_order_release);
}

const char *msh_text_get(const MshText *text)
{
    const char *value = atomic_load_explicit((MshText *)text, memory_order_acquire);
    return value ? value : "";
}
